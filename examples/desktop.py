"""A desktop program of one's own, with a model in it: python examples/desktop.py BUNDLE [MEMORY]

The model is loaded and answers in a thread; the window's thread takes what comes from a queue. MEMORY is the budget of
the whole process, window included: it is measured when the model is loaded, which is after the window is there.
"""

import queue
import sys
import threading
import tkinter as tk

import edgert


def answer(bundle: str, memory: str | None, questions: queue.Queue[str], pieces: queue.Queue[str | None]) -> None:
    """The model's thread: each question's answer, piece by piece; None at its end."""
    try:
        with edgert.load(bundle, memory=memory) as model:
            pieces.put(f"{model.plan.summary}\n")
            pieces.put(None)
            while question := questions.get():
                for piece in model.chat([{"role": "user", "content": question}], max_tokens=300, temperature=0.7):
                    pieces.put(piece.text)
                pieces.put(None)
    except edgert.EdgertError as error:
        pieces.put(f"{error}\n")


def main(bundle: str, memory: str | None = None) -> None:
    questions, pieces, window = queue.Queue[str](), queue.Queue[str | None](), tk.Tk()
    window.title("edgert in Tk")
    text, entry = tk.Text(window, wrap="word", padx=14, pady=12, relief="flat"), tk.Entry(window, state="disabled")
    entry.pack(fill="x", padx=10, pady=10, side="bottom")
    text.pack(fill="both", expand=True)

    def ask(_event: object) -> None:
        text.insert("end", f"\n> {entry.get()}\n")
        questions.put(entry.get())
        entry.delete(0, "end")
        entry.configure(state="disabled")  # until the answer has ended

    def take() -> None:
        while not pieces.empty():
            piece = pieces.get()
            text.insert("end", "\n" if piece is None else piece)
            entry.configure(state="normal" if piece is None else "disabled")
            text.see("end")
        window.after(30, take)

    entry.bind("<Return>", ask)
    window.update()
    threading.Thread(target=answer, args=(bundle, memory, questions, pieces), daemon=True).start()
    take()
    window.mainloop()


if __name__ == "__main__":
    main(*sys.argv[1:])
