"""What tests share: `servers.py` real servers, `plant.py` a whole data plane in this process,
`script.py` for sans-IO objects, `wait.py`.
"""
