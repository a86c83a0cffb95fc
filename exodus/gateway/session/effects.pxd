# Types for the compiled form of effects.py; they do not change its behaviour.
cimport cython

from exodus.gateway.orders cimport Orders
from exodus.gateway.session.parts cimport SessionParts
from exodus.gateway.session.pending cimport Pending
from exodus.gateway.session.state cimport Prediction
from exodus.gateway.session.transaction cimport Transaction
from exodus.resp.scanner cimport Reply

cdef object _OFF, _SAMPLE, _ALL

@cython.final
cdef class Effects:
    cdef public SessionParts parts
    cdef public list intents, barriers, gaps

    @cython.locals(parts=SessionParts, predicted=Prediction, orders=Orders, db=Py_ssize_t,
                   key=bytes)
    cdef intend(self, Pending pending)
    @cython.locals(parts=SessionParts, orders=Orders, journals=bint, intents=list, barriers=list)
    cdef log(self)
    @cython.locals(parts=SessionParts, orders=Orders, db=Py_ssize_t, key=bytes)
    cdef mark(self, Pending pending, Reply reply, list marks, object done)
    @cython.locals(parts=SessionParts, orders=Orders, transaction=Transaction, db=Py_ssize_t)
    cdef _mark_several(self, Pending pending, Reply reply, list marks, object done)
