# Types for the compiled form of share.py; nothing here changes what it does.
cimport cython

cdef bint _AS_SOURCE
cdef unsigned int _ALL, _SPREAD
cdef const unsigned int[::1] _TABLE

cpdef Py_ssize_t salt_of(Py_ssize_t salt, Py_ssize_t db)
@cython.locals(view="const unsigned char*", size=Py_ssize_t, at=Py_ssize_t, value="unsigned int")
cpdef bint in_share(bytes key, Py_ssize_t below, Py_ssize_t salt)
