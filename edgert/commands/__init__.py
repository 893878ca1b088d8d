"""Commands of the `edgert` command line, one file each."""
