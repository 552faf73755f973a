package ca

import (
	"github.com/mayfly-ca/mayfly/ca/guard"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// The store's types under this package's name: who imports ca needs no other
// package to read what it returns.
type (
	Store             = store.Store
	Meta              = store.Meta
	Certificate       = store.Certificate
	CertificateFilter = store.CertificateFilter
	Match             = store.Match
	Block             = store.Block
	Revocation        = store.Revocation
	RevocationResult  = store.RevocationResult
	Event             = store.Event
	EventFilter       = store.EventFilter
	Session           = store.Session
	SessionReport     = store.SessionReport
	SessionReporter   = store.SessionReporter
	SessionRefusal    = store.SessionRefusal
	SessionFilter     = store.SessionFilter
	MachineStatus     = store.MachineStatus
	Counts            = store.Counts
	Login             = store.Login
	HourCount         = store.HourCount
	StateKey          = store.StateKey
	BlockedError      = store.BlockedError
	ReplayError       = store.ReplayError
	// RefusedError is the guard's: a fault of ours, which trying again does not mend.
	RefusedError = guard.RefusedError
)

// The store's sentinels.
var (
	ErrNotFound    = store.ErrNotFound
	ErrMissing     = store.ErrMissing
	ErrExists      = store.ErrExists
	ErrOtherRoot   = store.ErrOtherRoot
	ErrNewer       = store.ErrNewer
	ErrBeforeFloor = store.ErrBeforeFloor
	ErrForged      = store.ErrForged
	ErrBadCursor   = store.ErrBadCursor
)

// MaxCount is where the store's Counts stops to count certificates.
const MaxCount = store.MaxCount

// The store's event types.
const (
	EventIssued       = store.EventIssued
	EventDenied       = store.EventDenied
	EventReplay       = store.EventReplay
	EventRevoked      = store.EventRevoked
	EventBlocked      = store.EventBlocked
	EventUnblocked    = store.EventUnblocked
	EventConnected    = store.EventConnected
	EventDisconnected = store.EventDisconnected
	EventAdminRead    = store.EventAdminRead
	EventForbidden    = store.EventForbidden
	EventLogin        = store.EventLogin
	EventLogout       = store.EventLogout
	EventAdminLink    = store.EventAdminLink
	EventPolicyLoaded = store.EventPolicyLoaded
	EventRotation     = store.EventRotation
	EventFeedStale    = store.EventFeedStale
	EventRestored     = store.EventRestored
	EventPruned       = store.EventPruned
)
