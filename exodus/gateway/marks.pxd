# Types for the compiled form of marks.py; nothing here changes what it does.
cimport cython

cdef class Marks:
    cdef object _wake
    cdef bint _awake
    cdef public bint each
    cdef dict _keys, _barriers
    cdef list _writes
    cdef public Py_ssize_t coalesced

    @cython.locals(marked=dict, before=Py_ssize_t)
    cpdef add(self, list keys, object barrier)
