"""What tests share: `servers.py` real servers, `local.py` a whole data plane in this process,
`script.py` for sans-IO objects, `wait.py`.
"""
