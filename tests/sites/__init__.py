"""The sites of ``sites/``, each over the wire, without the packages that they are written for."""
