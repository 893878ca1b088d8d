"""Questions over a folder of text files: python examples/search.py FOLDER BUNDLE [MEMORY [EMBEDDINGS]]

The files' passages become vectors; those nearest to a question go to the model with it. Both in one budget, MEMORY: the
process that computes vectors is part of it. EMBEDDINGS is a folder with a model for them, by default what
`edgert pull all-minilm-l6-v2` fetched.
"""

import sys
from pathlib import Path

import numpy as np

import edgert

LENGTH, PASSAGES = 800, 4
ASKED = "Answer the question from these passages; say so if they do not tell.\n\n{passages}\n\nQuestion: {question}"


def passages_of(folder: Path) -> list[tuple[str, str]]:
    """Each passage, with its file's name: paragraphs, joined as long as they are short, cut where they are long."""
    found: list[tuple[str, str]] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".rst")):
        passage = ""
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if passage and len(passage) + len(paragraph) > LENGTH:
                found.append((path.name, passage))
                passage = ""
            passage = f"{passage}\n\n{paragraph.strip()}".strip()
            while len(passage) > LENGTH:
                found.append((path.name, passage[:LENGTH]))
                passage = passage[LENGTH:]
        if passage:
            found.append((path.name, passage))
    return found


def main(folder: str, bundle: str, memory: str | None = None, embeddings: str | None = None) -> None:
    passages = passages_of(Path(folder))
    if not passages:
        sys.exit(f"{folder}: has no text files (.txt, .md, .rst)")
    with edgert.Embedder(embeddings or edgert.pull("all-minilm-l6-v2")) as embedder:
        vectors = embedder.embed([text for _, text in passages])
        with edgert.load(bundle, memory=memory, context=2048, embeddings=embedder.memory) as model:
            print(f"{len(passages)} passages; {model.plan.summary}")
            while question := input("? ").strip():
                nearest = np.argsort(vectors @ embedder.embed([question])[0])[:-PASSAGES - 1:-1]
                print("from", ", ".join(dict.fromkeys(passages[index][0] for index in nearest)))
                asked = ASKED.format(passages="\n\n".join(passages[index][1] for index in nearest), question=question)
                for piece in model.chat([{"role": "user", "content": asked}], max_tokens=200, temperature=0.0):
                    print(piece.text, end="", flush=True)
                print()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except edgert.EdgertError as error:
        sys.exit(f"{error}")
    except EOFError:
        pass
