"""Citations of the methods in a run: a table from slot names to entries of citations.bib."""

import re
from collections.abc import Iterable
from pathlib import Path

# Names of slots and of their classes, in lower case without underscores. Add a line for a new method.
PAPERS = {
    "adaptivekl": "wu2025rethinking",
    "at": "zagoruyko2017paying",
    "attentionscores": "jiao2020tinybert",
    "average": "you2017multiple",
    "catkd": "guo2023class",
    "constant": "hinton2015distilling",
    "crd": "tian2020contrastive",
    "cwd": "shu2021channel",
    "dist": "huang2022stronger",
    "dkd": "zhao2022decoupled",
    "energy": "kim2024energy",
    "entropy": "su2025eakd",
    "fcfd": "liu2023function",
    "fitnet": "romero2015fitnets",
    "gold": "patino2025unlocking",
    "gradation": "kim2024energy",
    "hiddencosine": "sanh2019distilbert",
    "hiddenmse": "jiao2020tinybert",
    "inverseentropy": "kwon2020adaptive",
    "jsd": "agarwal2024onpolicy",
    "kd": "hinton2015distilling",
    "learned": "li2023curriculum",
    "lsh": "wang2021distilling",
    "minilm": "wang2021minilmv2",
    "mld": "jin2023multilevel",
    "nkd": "yang2023normalized",
    "nst": "huang2017like",
    "ofd": "heo2019comprehensive",
    "peers": "zhang2018mutual",
    "pkd": "sun2019patient",
    "pkt": "passalis2018learning",
    "reversekl": "gu2024minillm",
    "reviewkd": "chen2021distilling",
    "rkd": "park2019relational",
    "sakd": "song2022spot",
    "skewkl": "ko2024distillm",
    "skewreversekl": "ko2024distillm",
    "sp": "tung2019similarity",
    "standardized": "sun2024logit",
    "takd": "mirzadeh2020improved",
    "totalvariation": "wen2023fdivergence",
    "uld": "boizard2025towards",
    "vid": "ahn2019variational",
}
NO_PAPER = {"averaged", "matched", "uniform"}
# DKD(alpha=1.0), 'dkd' inside Standardized(objective='dkd'), and a student's Peers (1,000 parameters)
NAMES = re.compile(r"""(\w+) ?\(|["'](\w+)["'(]""")


def slot_name(name: str) -> str:
    """A slot's name as in `PAPERS`: SkewReverseKL and skew_reverse_kl both become skewreversekl."""
    return name.replace("_", "").lower()


def citations(slots: Iterable[str]) -> str:
    """The BibTeX entries of the methods in `slots`, the reprs of a loss's slots and its networks; each entry once."""
    names = [slot_name(called or quoted) for slot in slots for called, quoted in NAMES.findall(slot)]
    keys = dict.fromkeys(PAPERS[name] for name in names if name in PAPERS)
    entries = bibliography()
    return "\n\n".join(entries[key] for key in keys)


def bibliography() -> dict[str, str]:
    """The entries of citations.bib by key."""
    text = Path(__file__).with_name("citations.bib").read_text(encoding="utf-8")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
