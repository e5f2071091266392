"""What a service tells about itself over HTTP: whether it lives, whether it can work, and what it has counted.

Nothing of it exists unless a port is set. `instruments` are plain numbers, so whoever counts knows nothing of HTTP or
Prometheus; `endpoint` alone needs the packages of the extra ``monitoring``.
"""
