# Types for the compiled form of admission.py; they do not change its behaviour.
cimport cython

from exodus.commands.table cimport Command
from exodus.gateway.orders cimport Orders
from exodus.gateway.session.leg cimport SessionLeg
from exodus.gateway.session.parts cimport SessionParts
from exodus.gateway.session.pending cimport Pending
from exodus.gateway.session.state cimport Prediction, SessionState
from exodus.gateway.session.transaction cimport Transaction
from exodus.resp.scanner cimport Request

cdef Py_ssize_t _SHADOW_BYTES_MAX, _TRANSACTION_BYTES, _ALL_NAMES
cdef bytes _MULTI, _TRANSACTION
cdef int _ON, _HELLO_WORDS, _CLIENT_REPLY_WORDS

@cython.final
cdef class Admission:
    cdef public SessionParts parts
    cdef public bytes prelude

    @cython.locals(parts=SessionParts, command=Command)
    cdef bint must_hold(self, list args) except -1
    @cython.locals(parts=SessionParts, certain=bint, in_multi=bint, named=bint)
    cdef bint must_wait(self, Command command, list args) except -1
    @cython.locals(parts=SessionParts, args=list, pending=Pending, transaction=Transaction)
    cdef Pending admit(self, Command command, Request request, bytes buffered, Py_ssize_t start,
                       Py_ssize_t end, double now)
    @cython.locals(command=Command)
    cdef _note_misfit(self, Pending pending, list args, Transaction transaction)
    @cython.locals(parts=SessionParts, command=Command, orders=Orders, keys=list, first=bytes,
                   predicted=Prediction, sampled=bint)
    cdef _pick(self, Pending pending, list args, bytes buffered, Py_ssize_t start, Py_ssize_t end)
    @cython.locals(parts=SessionParts, command=Command)
    cpdef _why_not_picked(self, Pending pending, bint whole)
    @cython.locals(parts=SessionParts, orders=Orders, first=bytes)
    cdef _pick_transaction(self, Pending pending, Transaction transaction)
    cdef _describe(self, Pending pending, list args, bint skipped)
    cdef bint _names_nodes(self, list args) except -1
    cdef _describe_script(self, Pending pending, list args)
    cdef _queue(self, Transaction transaction, Pending pending, bytes raw, Py_ssize_t size)
    cdef _queue_effect(self, Transaction transaction, Pending pending)
    @cython.locals(parts=SessionParts, state=SessionState, predicted=Prediction)
    cdef _predict(self, Pending pending, list args, bytes raw, double now)
    cdef _predict_login(self, Pending pending, list args)
    cdef _answer_as_cluster(self, Pending pending)
    @cython.locals(parts=SessionParts, state=SessionState, predicted=Prediction)
    cdef _predict_end(self, Pending pending, list args, bytes raw)
    @cython.locals(state=SessionState, predicted=Prediction, transaction=Transaction)
    cdef _predict_exec(self, Pending pending)
    @cython.locals(parts=SessionParts, leg=SessionLeg, state=SessionState)
    cdef _predict_block(self, Pending pending, list args, bytes raw, double now)
    cdef _translate_cursor(self, Pending pending, list args)
