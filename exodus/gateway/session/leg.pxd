# Types for the compiled form of leg.py; they do not change its behaviour.
cimport cython

@cython.final
cdef class SessionLeg:
    cdef public object logins, client_id
    cdef public Py_ssize_t tag
    cdef public bint client_id_asked, cluster, facade, logged_in, unblocking

@cython.final
cdef class UnreadTraffic:
    cdef public object why
    cdef public bint streaming, unanswered, executed, closing
