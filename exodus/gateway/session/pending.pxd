# Types for the compiled form of pending.py; they do not change its behaviour.
cimport cython

from exodus.commands.table cimport Command
from exodus.gateway.session.transaction cimport Transaction

cdef Py_ssize_t _QUEUE_SLACK
cdef bint _AS_SOURCE
cdef bytes _NOTHING
cdef list _NO_KEYS, _NOWHERE_ELSE

@cython.final
@cython.no_gc  # never part of a cycle
@cython.freelist(256)
cdef class Pending:
    cdef public Command command
    cdef public double since
    cdef public Py_ssize_t size, expected, sampled_as
    cdef public int reply_mode
    cdef public bytes key, raw, substitute, rewritten, text
    cdef public list keys, elsewhere, names, undescribed
    cdef public bint write, queued, own, shadowed, confirms, refused_elsewhere, whole, cursor
    cdef public object select, barrier, block, deadline, canary, unseen, misfit
    cdef public Transaction transaction

    cdef begin(self, Command command, double since, Py_ssize_t size)

@cython.final
cdef class PendingQueue:
    cdef list _items
    cdef Py_ssize_t _first
    cdef public Py_ssize_t count, writes

    @cython.locals(made=Pending)
    cpdef Pending make(self, Command command, double since, Py_ssize_t size)
    cpdef push(self, Pending pending)
    @cython.locals(first=Py_ssize_t, pending=Pending)
    cpdef Pending pop(self)
    cpdef put_back(self, Pending pending)
    cpdef clear(self)
    @cython.locals(pending=Pending)
    cpdef bint head_is_shadowed(self)
