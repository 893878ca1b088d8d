"""A native window on the page, a process of its own: python -m edgert.apps.window FOLDER.

It reads the page's address, so that no list of processes shows the key in it, and ends when its window is closed.
"""

import sys
from pathlib import Path

NO_WINDOW = 69
"""EX_UNAVAILABLE of sysexits.h."""
WIDTH, HEIGHT, LEAST = 1360, 860, (360, 480)


def main(folder: str) -> int:
    """Show the page until its window is closed. folder: where the page's storage is kept."""
    address = sys.stdin.readline().strip()
    try:
        import webview
    except ImportError:
        return NO_WINDOW
    try:
        webview.create_window("edgert", address, width=WIDTH, height=HEIGHT, min_size=LEAST, text_select=True)
        webview.start(private_mode=False, storage_path=folder, icon=str(Path(__file__).with_name("page") / "icon.svg"))
    except Exception:  # each toolkit has its own errors for that it is not there, or has no display
        return NO_WINDOW
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
