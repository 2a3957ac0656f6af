"""The Studies Service over what Hilum holds: QIDO-RS and WADO-RS (PS3.18 10.4 and 10.6).

STOW-RS is `service.api.stow`.
"""
