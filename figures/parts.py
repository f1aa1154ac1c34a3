"""What the figures' scripts share: tables in csv files, and pictures."""
import csv

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sources.files import replacing


def write_table(path, rows):
    """Writes rows, a list of dicts with the same names, to a csv file, which is whole or not there at all."""
    with replacing(path, 'w', newline='', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path):
    """The rows of a csv file, a list of dicts of texts."""
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def new_picture(width, height):
    """A figure of that many inches, and its axes."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # pyplot would set what a notebook draws with
    return figure, figure.subplots()


def save_picture(figure, path):
    """Writes a figure to a png file, which is whole or not there at all."""
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format='png')
