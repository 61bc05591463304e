"""The real client packages against the sites that are written for them. ``make test-clients`` runs these, ``make test``
does not: they need the network once, to install the packages."""
