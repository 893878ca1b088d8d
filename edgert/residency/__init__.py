"""Where weights are: in memory, or on flash and read from there in time; large memory, files and devices."""
