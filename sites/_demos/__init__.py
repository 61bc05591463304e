"""The controllers of the demos; the leading underscore keeps this folder out of the site's URLs."""
