"""Teachers: frozen networks, scans of the training set, and stored outputs."""

from hfkd.teachers.base import Teacher
from hfkd.teachers.by_row import TeacherByRow
from hfkd.teachers.ensemble import TeacherEnsemble
from hfkd.teachers.frozen import FrozenTeacher, place
from hfkd.teachers.image_cache.teacher import CachedTeacher
from hfkd.teachers.statistics import scan
from hfkd.teachers.teacher_scan import TeacherScan
from hfkd.teachers.token_cache.build import build_text_cache
from hfkd.teachers.token_cache.captured import build_captured_cache
from hfkd.teachers.token_cache.teacher import CachedTextTeacher

__all__ = [
    "CachedTeacher",
    "CachedTextTeacher",
    "FrozenTeacher",
    "Teacher",
    "TeacherByRow",
    "TeacherEnsemble",
    "TeacherScan",
    "build_captured_cache",
    "build_text_cache",
    "place",
    "scan",
]
