"""Native replication: the target is the source's replica until the cutover. Read `replica.py`."""
