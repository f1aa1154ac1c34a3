"""Where the data come from: files, official data sets and invented stand-ins. Users reach all by data.py."""
