"""The commands of ``krait-ws``, a module each. ``krait_ws.cli`` finds a module ``name.py`` here and in it the click
command ``name``; a module is imported when its command is called, so it may import whatever it needs.
"""
