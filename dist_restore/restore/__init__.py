"""The story in a straight line: `restorer.py` is the face, `run.py` the phases, `converter.py` the same into files.

find targets -> open -> plan -> agree -> check -> assign -> verify -> report
"""
