# Types for the compiled form of encode.py; nothing here changes what it does.
cimport cython

cdef Py_ssize_t _HEADS_MAX
cdef tuple _HEADS
cdef tuple _HEADS_AFTER

@cython.locals(raw=bytes, length=Py_ssize_t)
cdef bytes _joined(list parts, tuple args)

@cython.locals(parts=list, key=bytes, value=bytes, at=bytes, expiry_ms=long)
cpdef bytes encode_strings(list keys, list expiries_ms, list values)

@cython.locals(
    parts=list, written=list, count=Py_ssize_t, group=list, lasting=list, place=Py_ssize_t, at=bytes,
    words=bytes
)
cpdef tuple string_commands(list keys, list expiries_ms, list values, list groups)

cdef bytes _head(Py_ssize_t length)
cdef bytes _head_after(Py_ssize_t length)
