"""Draws the pictures in assets/ from the csv files there that the scripts in figures/ and `follow` have left.

    python tools/draw_figures.py
    python tools/draw_figures.py --out FOLDER
"""
import argparse
import glob
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console
from experiment.console import plain_errors
from figures import figure3, figure4, figure5
from reproduction.runs import ROOT
from tools import follow

ASSETS = os.path.join(ROOT, 'assets')


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--out', default=ASSETS, help='folder of the pictures')
    args = parser.parse_args(words)
    with plain_errors():
        for draw, logs, picture in ((figure3.draw, 'figure3_*.csv', 'figure3.png'),
                                    (figure4.draw, 'figure4_seed*.csv', 'figure4.png'),
                                    (follow.draw, 'follow/*.csv', 'follow.png')):
            draw(sorted(glob.glob(os.path.join(ASSETS, logs))), os.path.join(args.out, picture))
        figure5.draw(os.path.join(ASSETS, 'figure5.csv'), os.path.join(args.out, 'figure5.png'))


if __name__ == '__main__':
    console.run(main)
