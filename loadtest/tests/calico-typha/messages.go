package main

import (
	"encoding/gob"
	"time"
)

// The messages of the protocol, as far as the stand-in speaks it. Field names and registered names are the wire format.

type Envelope struct{ Message interface{} }

type CompressionAlgorithm string

type MsgClientHello struct {
	Hostname, Info, Version        string
	SyncerType                     string
	SupportsDecoderRestart         bool
	SupportedCompressionAlgorithms []CompressionAlgorithm
	SupportsModernPolicyKeys       bool
	ClientConnID                   uint64
}

type MsgServerHello struct {
	Version                     string
	SyncerType                  string
	SupportsNodeResourceUpdates bool
	ServerConnID                uint64
}

type MsgDecoderRestart struct {
	Message              string
	CompressionAlgorithm CompressionAlgorithm
}

type MsgACK struct{}

type SyncStatus uint8

const (
	resyncInProgress SyncStatus = 1
	inSync           SyncStatus = 2
)

type MsgSyncStatus struct{ SyncStatus SyncStatus }

type MsgPing struct{ Timestamp time.Time }

type MsgPong struct{ PingTimestamp, PongTimestamp time.Time }

type UpdateType uint8

const (
	kvNew     UpdateType = 1
	kvUpdated UpdateType = 2
	kvDeleted UpdateType = 3
)

type SerializedUpdate struct {
	Key               string
	Value             []byte
	Revision          interface{}
	V3ResourceVersion string
	TTL               time.Duration
	UpdateType        UpdateType
}

type MsgKVs struct{ KVs []SerializedUpdate }

func init() {
	for name, message := range map[string]interface{}{
		"MsgClientHello": MsgClientHello{}, "MsgServerHello": MsgServerHello{}, "MsgDecoderRestart": MsgDecoderRestart{},
		"MsgACK": MsgACK{}, "MsgSyncStatus": MsgSyncStatus{}, "MsgPing": MsgPing{}, "MsgPong": MsgPong{}, "MsgKVs": MsgKVs{},
	} {
		gob.RegisterName("github.com/projectcalico/typha/pkg/syncproto."+name, message)
	}
}
