"""The README's figures are those of one run (readme_figures.py), and agree with one another. Nothing is run here."""

import re

from readme_text import FIGURES, README, commands, disagreements, load, render


def test_written_by_the_script() -> None:
    readme, record = README.read_text(), load()
    assert FIGURES.search(readme)
    assert set(commands(readme)) == set(record["examples"])
    assert render(readme, record) == readme, "a figure was changed by hand; make readme-figures writes them"


def test_no_example_escapes() -> None:
    """A block with a command is either written by the script, or a chat."""
    readme = README.read_text()
    assert len(re.findall(r"^\$ edgert (?!chat )", readme, re.MULTILINE)) == len(commands(readme))


def test_figures_agree() -> None:
    assert not disagreements(load())


def test_figures_that_do_not() -> None:
    """4.17 tokens/s measured and 8.4 predicted, and two disks, as the page once said."""
    record = {
        "machine": {"disk_gb_s": 1.56}, "limits": [{"limit": "600M", "edgert": [4.17], "llama.cpp": [0.88]}],
        "examples": {"edgert plan m.edge --memory 600M -c 1024": "read for a pass    356 of 833 MiB of weights\n"
                     "disk                vda (ext4), 3.16 GB/s when it was measured\npredicted speed     8.4 tokens/s",
                     "edgert run m.edge --memory 600M -p x": "memory: 600 MiB; 60 % of the weights stay in it, 337 MiB "
                     "are read for each pass\n"}}
    disk, read, speed = disagreements(record)
    assert "3.16 GB/s, elsewhere 1.56" in disk
    assert "337 and 356 MiB" in read
    assert "8.4 tokens/s predicted, 4.17 measured" in speed


def test_a_text_that_is_guessed_well_or_badly() -> None:
    """The speed may be anything between that without speculation and what is expected of it, and somewhat more."""
    plan = "predicted speed     8.0 tokens/s, as fast as the disk allows\nwith speculation    16.0 tokens/s\n"

    def found(measured: float) -> list[str]:
        return disagreements({
            "machine": {"disk_gb_s": 1.0}, "limits": [{"limit": "600M", "edgert": [measured], "llama.cpp": [1.0]}],
            "examples": {"edgert plan m.edge --memory 600M -c 1024": plan}})

    assert not found(6.0) and not found(16.0) and not found(25.0)
    assert found(4.0) == ["600M: 8.0 tokens/s predicted, 4.00 measured"]
    assert found(26.0) == ["600M: 16.0 tokens/s predicted, 26.00 measured"]
