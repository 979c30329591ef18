"""A file per kind of data: from the rows of its files to samples. None of it knows torch."""
