"""Teachers: frozen networks, what one pass of them over the training set tells, and what they said, stored."""

from hfkd.teachers.cache import CachedTeacher
from hfkd.teachers.cached_text import CachedTextTeacher
from hfkd.teachers.live import LiveTeacher, Teachers, place
from hfkd.teachers.scan import TeacherScan, scan
from hfkd.teachers.text_cache import build_text_cache

__all__ = [
    "CachedTeacher",
    "CachedTextTeacher",
    "LiveTeacher",
    "TeacherScan",
    "Teachers",
    "build_text_cache",
    "place",
    "scan",
]
