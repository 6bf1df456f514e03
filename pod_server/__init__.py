"""What runs in a pod: the front, the zygote and the worker.

Nothing in here imports ``kubetorch_jupyter``, and nothing needs more than the standard library and the pure-Python
packages that travel with it (uvicorn, h11, click, websockets, cloudpickle), so that any image with Python 3.10 or later
can run it. ``wire``, ``serialization`` and ``exceptions`` are shared with the client, so that there is one definition.
"""
