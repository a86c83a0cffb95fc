# Types for the compiled form of buffers.py; they do not change its behaviour.
cimport cython

from exodus.resp.scanner cimport ReplyScanner, RequestScanner

@cython.final
cdef class RequestBuffer:
    cdef dict _kept
    cdef public RequestScanner scanner
    cdef public bytes unsent
    cdef public list backlog
    cdef public Py_ssize_t backlog_bytes, sent, turn
    cdef public bint streaming, held, frozen, login_waits

    cpdef hold(self)
    cpdef keep(self, bytes data)
    cpdef keep_first(self, bytes data)
    cpdef bytes release(self)

@cython.final
cdef class ReplyBuffer:
    cdef public ReplyScanner scanner
    cdef public bytes unsent
    cdef public Py_ssize_t sent_bytes, edits, copies
    cdef public bint silent, skip_next, silence_asked, spoken

    cpdef speak(self)
