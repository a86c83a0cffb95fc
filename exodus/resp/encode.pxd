# Types for the compiled form of encode.py; nothing here changes what it does.
cimport cython

cdef Py_ssize_t _HEADS_MAX
cdef tuple _HEADS

@cython.locals(raw=bytes, length=Py_ssize_t)
cdef bytes _joined(list parts, tuple args)
