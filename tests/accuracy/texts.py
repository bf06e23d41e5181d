#!/usr/bin/env python3
"""texts.py - English to train on, from packages of Debian 12: texts.py OUT.txt [--without DEV.txt]

One paragraph a line: what reads like prose, once each, in the order of PACKAGES and of their files.
Paragraphs that share a run of RUN words with --without are left out, so that what is held out stays
so. Needs apt-get, dpkg-deb and mod2imp (package libsword-utils); nothing is installed. The licence of
a text is its package's (/usr/share/doc/PACKAGE/copyright): all are free to use and to change, not all
are in the public domain, so the text itself is not kept in this tree.
"""
import argparse
import gzip
import html
import os
import pathlib
import re
import subprocess
import tempfile

RUN = 8
LATER_BOOKS = ("Philippians|Colossians|I+ Thessalonians|I+ Timothy|Titus|Philemon|Hebrews|James|I+ Peter|I+ John|Jude"
               "|Revelation of John")  # another translation of what demo.sh holds out
PACKAGES = {  # package: the files, by their ending, and how they are read
    "anarchism": (".md.gz", "plain"),
    "sword-text-web": (".conf", "sword"),
    "rust-doc": ("book/*.html", "html"),
    "python3.11-doc": (".html", "html"),
    "postgresql-doc-15": (".html", "html"),
    "libreoffice-help-en-us": (".html", "html"),
    "gnucash-docs": (".html", "html"),
    "perl-doc": (".pod", "plain"),
    "linux-doc-6.1": (".rst.gz", "plain"),
}
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": " - ", "\u00a0": " ", "…": "..."})
PROSE = re.compile(r"[A-Z\"'][A-Za-z0-9 ,.;:?!'\"()-]*[.?!][\"')]?")


def fetch(package, folder):
    subprocess.run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL)
    (deb,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, folder / package], check=True)
    deb.unlink()
    return folder / package


def read(path):
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")


def blocks_plain(root, ending):
    for path in sorted(root.rglob("*" + ending)):
        for block in re.split(r"\n\s*\n", read(path)):
            if not re.match(r"\s{2}|[=#*+-]|\.\.", block):  # not code, headings, lists, directives
                yield re.sub(r"\*\*|(?<!\w)[_*`]+|[_*`]+(?!\w)", "", block)


def blocks_html(root, ending):
    for path in sorted(p for p in root.rglob("*.html") if p.match("*" + ending)):
        for block in re.findall(r"<p\b[^>]*>(.*?)</p>", read(path), re.S):
            if "<code" not in block and "<pre" not in block:
                yield html.unescape(re.sub(r"<[^>]+>", "", block))


def blocks_sword(root, ending):
    """Verses, joined into paragraphs where the text has them; of every book that LATER_BOOKS does not name."""
    (conf,) = root.rglob("*" + ending)
    module = re.search(r"\[(.*)\]", conf.read_text(errors="replace")).group(1)
    text = subprocess.run(["mod2imp", module], env={**os.environ, "SWORD_PATH": str(conf.parent.parent)}, check=True,
                          capture_output=True).stdout.decode(errors="replace")
    text = re.sub(rf"^\$\$\$(?:{LATER_BOOKS}) \d.*\n.*\n", "", text, flags=re.M)
    text = re.sub(r"^\$\$\$.*\n", "", re.sub(r"<note\b.*?</note>|<title\b.*?</title>", "", text, flags=re.S), flags=re.M)
    for block in re.split(r'<div [^>]*type="x-p"[^>]*>|<chapter\b[^>]*>', text):
        yield html.unescape(re.sub(r"<[^>]+>", "", block))


BLOCKS = {"plain": blocks_plain, "html": blocks_html, "sword": blocks_sword}


def prose(block):
    """The paragraph, its sentences with something odd in them left out; or nothing."""
    text = " ".join(block.translate(PLAIN).replace("--", " - ").split())
    sentences = re.split(r"(?<=[.?!]) (?=[A-Z\"'])|(?<=[.?!][\"')]) (?=[A-Z\"'])", text)
    kept = " ".join(s for s in sentences if PROSE.fullmatch(s) and sum(map(str.isupper, s)) < len(s) / 8)
    return kept if len(kept.split()) >= 12 and len(kept) > len(text) / 2 else ""


def runs(text):
    words = re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()
    return {tuple(words[i:i + RUN]) for i in range(len(words) - RUN + 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--without", help="held-out text, a paragraph a line")
    args = parser.parse_args()
    held_out = set().union(*map(runs, pathlib.Path(args.without).read_text().splitlines())) if args.without else set()
    seen = set()
    with open(args.out, "w") as out, tempfile.TemporaryDirectory() as folder:
        for package, (ending, kind) in PACKAGES.items():
            n_bytes = n_left_out = 0
            for text in map(prose, BLOCKS[kind](fetch(package, pathlib.Path(folder)), ending)):
                if text and text not in seen:
                    seen.add(text)
                    if held_out.isdisjoint(runs(text)):
                        n_bytes += out.write(text + "\n")
                    else:
                        n_left_out += 1
            print(f"{package}: {n_bytes} bytes, {n_left_out} paragraphs are held out")


if __name__ == "__main__":
    main()
