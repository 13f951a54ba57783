"""Do README.md, docs/ and docstrings keep their promises? Links, anchors, files, commands, sentences and sizes.

    python -m checks.docs

It prints each fault with its page and exits 1 if there is one. Links and anchors have to resolve, and files that are named have
to exist. Shell blocks have to pass `bash -n`, and their options and variables have to be those of the command. Python blocks
have to compile. A sentence has at most 40 words, in docstrings too. On the pages fewer than 1 in 20 have more than 30, and none
stands twice. README.md has at most 10,000 bytes, results/LOG.md at most 300 lines. Commands of the log are those of the commit
that an entry names.
"""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "results" / "LOG.md"
ELSEWHERE = {"dqn_atari.py", "ppo_atari.py", "source.py"}
"""names of files that are not of this repository: CleanRL's, and those of a run folder"""
MOST_WORDS, MANY_WORDS, SHARE = 40, 30, 1 / 20
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


# -------------------------------------------------------------------------------------------------------- links and files
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if "://" not in target and (not file.exists() or (anchor and anchor not in anchors(file))):
            faults.append(f"link {target}")
    return faults


def missing_files(text: str) -> list[str]:
    """Paths below a folder of the repository, names of programs and names of tests that do not exist."""
    places = "analysis|checks|docs|evals|prune_utils|results|scripts|tests|\\.ci"
    named = set(re.findall(rf"(?<![\w./-])(?:{places})/[\w./*-]*[\w*]", text))
    missing = [f"file {path}" for path in sorted(named) if not list(ROOT.glob(path))]
    tests = "".join(file.read_text() for file in ROOT.glob("tests/*.py"))
    missing += [f"test {name}" for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests]
    files = {str(file.relative_to(ROOT)) for file in ROOT.glob("*/*.py")}
    modules = {name.replace(".", "/") for name in re.findall(r"python -m ((?:analysis|checks|evals)[\w.]*\w)", text)}
    missing += [f"module {name}" for name in sorted(modules) if not {f"{name}.py", f"{name}/__main__.py"} & files]
    programs = set(re.findall(r"(?<![\w./*-])[\w-]+\.(?:py|sh|yaml|toml)\b", text)) - ELSEWHERE
    folders = ["", *places.replace("\\", "").split("|")]
    return missing + [f"file {name}" for name in sorted(programs) if not any((ROOT / f / name).exists() for f in folders)]


# --------------------------------------------------------------------------------------------------------------- commands
def options(file: Path) -> set[str]:
    """The options of a command: the fields of Args in its file, or of the Args that it takes from a file beside it."""
    found, tree = set(), ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            found |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}
        elif isinstance(node, ast.Attribute) and node.attr == "Args" and isinstance(node.value, ast.Name):
            beside = file.parent / f"{node.value.id}.py"
            found |= options(beside) if beside.exists() else set()
        elif isinstance(node, ast.ImportFrom) and "main" in [name.name for name in node.names]:
            found |= options(ROOT / f"{node.module.replace('.', '/')}.py")
    return found


def program(words: list[str]) -> tuple[Path | None, list[Path]]:
    """The file of a command, if it is one of this repository, and the files whose options it takes."""
    if words[0].endswith("python") and len(words) > 1:
        name = words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py")
        file = ROOT / name / "__main__.py" if (ROOT / name).is_dir() else ROOT / f"{name}.py"
        return (file, [file]) if words[1] != "-m" or (ROOT / name.split("/")[0]).is_dir() else (None, [])
    if not words[0].startswith("scripts/"):
        return None, []
    trained = {name for word in words for name in ("dqn", "ppo") if f"_{name}" in word}
    trained |= {"dqn", "ppo"} if "quickstart" in words[0] else set()
    return ROOT / words[0], [ROOT / f"{name}_atari_prune.py" for name in sorted(trained)]


def wrong_commands(block: str) -> list[str]:
    """What is wrong with the commands of a shell block."""
    checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    if checked.returncode:
        return [f"shell block: {checked.stderr.strip()}"]
    faults = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables = []
        while words and re.match(r"[A-Z_]+=", words[0]):
            variables.append(words.pop(0).partition("=")[0])
        file, takes = program(words) if words else (None, [])
        if file is None:
            continue
        if not file.is_file():
            faults.append(f"command {line.strip()}: there is no {file.relative_to(ROOT)}")
            continue
        known = {option for each in takes if each.suffix == ".py" and each.exists() for option in options(each)} | {"help"}
        given = [word.partition("=")[0][2:].replace("-", "_") for word in words if re.match(r"--\w", word)]
        if "test.sh" not in words[0]:  # its arguments go to pytest
            faults += [f"command {line.strip()}: no option {g}" for g in given if not {g, g.removeprefix("no_")} & known]
        helped = "".join(each.read_text() for each in [*ROOT.glob("scripts/sweep.sh"), file])
        faults += [f"command {line.strip()}: no variable {name}" for name in variables if name not in helped]
    return faults


def wrong_blocks(text: str) -> list[str]:
    """What is wrong with the fenced blocks of a page."""
    faults = []
    for language, block in FENCE.findall(text):
        if language == "bash":
            faults += wrong_commands(block)
        if language == "python":
            try:
                compile(block, "block", "exec")
            except SyntaxError as error:
                faults.append(f"python block: {error}")
    return faults


# -------------------------------------------------------------------------------------------------------------- sentences
def sentences(text: str) -> list[str]:
    """The sentences of a page, without headings, tables, blocks and pictures. A piece of code counts as one word."""
    text = re.sub(r"^(#.*|\|.*|!\[.*|<.*)$", "", FENCE.sub("\n", text), flags=re.M)
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "_"), text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(> ?)+", "", text, flags=re.M)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    found = [s for p in paragraphs for s in re.split(r"(?<=[.!?])[*)\"]*\s+(?=[*(\"]*[A-Z`\d])", " ".join(p.split()))]
    return [re.sub(r"^([-*]|\d+\.) ", "", sentence) for sentence in found if sentence]


def long_docstrings(file: Path) -> list[str]:
    """Sentences of a program's docstrings that are too long; indented lines do not count."""
    bodies = [body for node in ast.walk(ast.parse(file.read_text())) if isinstance(body := getattr(node, "body", None), list)]
    values = [line.value for body in bodies for line in body if isinstance(line, ast.Expr)]
    texts = [inspect.cleandoc(v.value) for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    found = [sentence for text in texts for sentence in sentences(re.sub(r"^ .*$", "", text, flags=re.M))]
    return [f"{len(s.split())} words: {s}" for s in found if len(s.split()) > MOST_WORDS]


def wrong_sentences(pages: dict[Path, str]) -> list[str]:
    """Sentences that are too long or stand twice."""
    where: dict[str, list[str]] = {}
    for page, text in pages.items():
        for sentence in sentences(text):
            where.setdefault(sentence, []).append(str(page.relative_to(ROOT)))
    words = {sentence: len(sentence.split()) for sentence in where}
    faults = [f"{where[s][0]}: {n} words: {s}" for s, n in words.items() if n > MOST_WORDS]
    faults += [f"{', '.join(files)}: twice: {s}" for s, files in where.items() if len(files) > 1 and words[s] > 5]
    many = [s for s, n in words.items() if n > MANY_WORDS]
    if len(many) >= SHARE * len(words):
        faults += [f"{len(many)} of {len(words)} sentences have over {MANY_WORDS} words", *many]
    return faults


def main() -> None:
    pages = {page: page.read_text() for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
    faults = wrong_sentences(pages)
    for page, text in pages.items():
        found = broken_links(page, text) + missing_files(text) + wrong_blocks(text)
        faults += [f"{page.relative_to(ROOT)}: {fault}" for fault in found]
    for file in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]):
        faults += [f"{file.relative_to(ROOT)}: {fault}" for fault in long_docstrings(file)]
    faults += [f"results/LOG.md: {fault}" for fault in broken_links(LOG, LOG.read_text())]
    if (size := (ROOT / "README.md").stat().st_size) > 10_000:
        faults.append(f"README.md has {size:,} bytes, more than 10,000")
    if (lines := len(LOG.read_text().splitlines())) > 300:
        faults.append(f"results/LOG.md has {lines} lines, more than 300")
    print("\n".join(faults) if faults else f"{len(pages)} pages: no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    main()
