# Types for the compiled form of histogram.py; nothing here changes what it does.
cimport cython

cdef Py_ssize_t _HALF, _BITS, _SIZE

cdef class Histogram:
    cdef public long long[::1] counts
    cdef public Py_ssize_t total, value_max

    @cython.locals(rest=Py_ssize_t, magnitude=Py_ssize_t)
    cpdef record(self, Py_ssize_t value)
    @cython.locals(wanted=Py_ssize_t, seen=Py_ssize_t, index=Py_ssize_t)
    cpdef Py_ssize_t quantile(self, double share) except -1
    @cython.locals(left=Py_ssize_t, index=Py_ssize_t)
    cpdef list steps(self)
