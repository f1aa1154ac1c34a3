"""Draws the paper's figures in assets/ from the csv files there that the scripts in figures/ have left.

    python tools/draw_figures.py
    python tools/draw_figures.py --out FOLDER
"""
import argparse
import glob
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from figures import figure4, figure5  # noqa: E402  (after the project is on the path)
from tools.runs import ROOT  # noqa: E402

ASSETS = os.path.join(ROOT, 'assets')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default=ASSETS, help='folder of the pictures')
    args = parser.parse_args()
    figure4.draw(sorted(glob.glob(os.path.join(ASSETS, 'figure4_seed*.csv'))), os.path.join(args.out, 'figure4.png'))
    figure5.draw(os.path.join(ASSETS, 'figure5.csv'), os.path.join(args.out, 'figure5.png'))


if __name__ == '__main__':
    main()
