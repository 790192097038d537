"""Weights from elsewhere, and to elsewhere. Start with ``load.py`` and ``export.py``.

Inside, every backbone is a dictionary of tensors under the names of the released DINOv2 files (``official.py``); each
foreign dialect is one module that translates from and to it.
"""
