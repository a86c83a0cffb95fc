# Types for the compiled form of intents.py; nothing here changes what it does.
cimport cython

cdef class IntentLog:
    cdef object _folder, _missed, _map
    cdef Py_ssize_t _at, _room, _number
    cdef object _listed, _spool_bytes, _unlisted, _gaps

    @cython.locals(kept=bint)
    cpdef append(self, list keys, object barrier)
    @cython.locals(size=Py_ssize_t, at=Py_ssize_t, length=Py_ssize_t, check=cython.ulonglong)
    cdef bint _write(self, int kind, bytes body, Py_ssize_t reserve) except -1
