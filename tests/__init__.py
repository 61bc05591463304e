"""The tests of krait-ws; the folders mirror the package."""
