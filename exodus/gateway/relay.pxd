# Types for the compiled form of relay.py; nothing here changes what it does.
cimport cython

from exodus.gateway.orders cimport Orders
from exodus.gateway.session.machine cimport Session

cdef Py_ssize_t _TURN_BYTES, _TURN_BYTES_BUSY, _TURN_REQUESTS, _PIPELINE_MAX
cdef Py_ssize_t _STRANGER_TURN_BYTES, _STRANGER_TURN_LINES

cdef class Connection

cdef class Turns:
    cdef object _waiting
    cdef bint _scheduled
    cdef double _rests, _turn_s

    cpdef add(self, Connection connection)
    @cython.locals(connection=Connection, began_cpu=double, ends=double, rest_s=double)
    cpdef _run(self)
    cpdef _rested(self)

cdef class LegProtocol:
    cdef public Connection owner
    cdef public object transport, arrived, address
    cdef public list early
    cdef public bint lost
    cdef public str local_address

    @cython.locals(owner=Connection)
    cpdef data_received(self, bytes data)

cdef class Connection:
    cdef public object hub, side, client, log_intents, journal, may_be_idle
    cdef public Orders orders
    cdef public Session session
    cdef public LegProtocol leg
    cdef public int listener
    cdef public object moving
    cdef public Turns turns
    cdef public bint client_gone
    cdef public str host
    cdef object _loop, _connecting
    cdef public bint full
    cdef bint _paused_by_session, _paused_by_leg, _ended, _eof_waits, _leaves
    cdef list _early
    cdef bytes _rest, _shown, _shown_name
    cdef Py_ssize_t _rest_at, _free_bytes

    cpdef data_received(self, bytes data)
    @cython.locals(end=Py_ssize_t, found=Py_ssize_t)
    cdef Py_ssize_t _strangers_part(self, Py_ssize_t at)
    @cython.locals(session=Session)
    cdef _read(self, bytes data)
    cpdef let_in(self)
    cpdef take_turn(self)
    @cython.locals(leg=LegProtocol)
    cpdef to_server(self, bytes data)
    cpdef to_client(self, bytes data)
