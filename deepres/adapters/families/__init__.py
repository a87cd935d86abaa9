"""One file per family of networks, each with its ``ADAPTER``; a new file is found by itself."""
