"""Tables in csv files, and pictures: for the figures' scripts, the log and the tools."""
import csv

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiment.checkpoints import check_folder, refuse_folders
from sources.files import replacing


def check_names(folder, *names):
    """Refuses a folder in which a folder has the name of a file to come, before any long work starts.

    Raises:
        OSError: there is one, or nothing could be written there.
    """
    check_folder(folder)
    refuse_folders(folder, names)


def write_table(path, rows):
    """Writes rows, a list of dicts with the same names, to a csv file, which is whole or not there at all."""
    with replacing(path, 'w', newline='', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path):
    """The rows of a csv file, a list of dicts of texts.

    Raises:
        ValueError: it is no csv file; the message names it.
        OSError: it cannot be read.
    """
    try:
        with open(path, encoding='utf-8', newline='') as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path} is no csv file ({error}): give one') from error


def new_picture(width, height, n_columns=1, n_rows=1, **options):
    """A figure of that many inches, and its axes; of several, an array of axes. `options` are those of `subplots`."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # pyplot would set what a notebook draws with
    return figure, figure.subplots(n_rows, n_columns, **options)


def save_picture(figure, path):
    """Writes a figure to a png file, which is whole or not there at all."""
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format='png')
