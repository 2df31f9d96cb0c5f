package main

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

const (
	perMessage = 100
	// The server's own are 10 s and 60 s: a test does not wait so long.
	pingInterval = 300 * time.Millisecond
	pongTimeout  = 10 * time.Second
)

// A line of standard input: an entry, or its deletion.
type line struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

type server struct {
	listener    net.Listener
	compression CompressionAlgorithm
	plain       bool

	lock    sync.Mutex
	changed *sync.Cond
	// All changes ever made: a snapshot is the fold of a part of them.
	log      []SerializedUpdate
	revision int
}

func newServer(address, compression string) (*server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &server{listener: listener, compression: CompressionAlgorithm(compression), plain: compression == "plain"}
	if compression == "none" {
		s.compression = ""
	}
	s.changed = sync.NewCond(&s.lock)
	return s, nil
}

// Takes in what is to be served until its end.
func (s *server) follow(input io.Reader) error {
	there := map[string]bool{}
	lines := json.NewDecoder(bufio.NewReader(input))
	for {
		var l line
		if err := lines.Decode(&l); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		update := SerializedUpdate{Key: l.Key, Value: l.Value, UpdateType: kvNew}
		switch {
		case l.Value == nil:
			update.UpdateType = kvDeleted
		case there[l.Key]:
			update.UpdateType = kvUpdated
		}
		there[l.Key] = l.Value != nil
		s.lock.Lock()
		s.revision++
		update.Revision = fmt.Sprint(s.revision)
		s.log = append(s.log, update)
		s.lock.Unlock()
		s.changed.Broadcast()
	}
}

func (s *server) accept() {
	for {
		connection, err := s.listener.Accept()
		check(err)
		go func() {
			defer connection.Close()
			if err := s.serve(connection); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				log.Printf("%v: %v", connection.RemoteAddr(), err)
			}
		}()
	}
}

// What is written to a client: types are sent anew and compression changes with each restart.
type encoder struct {
	connection net.Conn
	lock       sync.Mutex
	out        interface {
		io.Writer
		Flush() error
	}
	close func() error
	gob   *gob.Encoder
}

func (e *encoder) restart(compression CompressionAlgorithm) error {
	buffered := bufio.NewWriter(e.connection)
	e.close = buffered.Flush
	switch compression {
	case "snappy":
		packed := snappy.NewBufferedWriter(e.connection)
		e.out, e.close = packed, packed.Close
	case "zstd":
		packed, err := zstd.NewWriter(e.connection, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		e.out, e.close = packed, packed.Close
	default:
		e.out = buffered
	}
	e.gob = gob.NewEncoder(e.out)
	return nil
}

func (e *encoder) send(message interface{}) error {
	e.lock.Lock()
	defer e.lock.Unlock()
	if err := e.gob.Encode(Envelope{message}); err != nil {
		return err
	}
	return e.out.Flush()
}

func (s *server) serve(connection net.Conn) error {
	decoder := gob.NewDecoder(connection)
	receive := func(timeout time.Duration) (interface{}, error) {
		check(connection.SetReadDeadline(time.Now().Add(timeout)))
		var envelope Envelope
		err := decoder.Decode(&envelope)
		return envelope.Message, err
	}
	first, err := receive(pongTimeout)
	if err != nil {
		return err
	}
	hello, ok := first.(MsgClientHello)
	if !ok || hello.SyncerType != "felix" || !hello.SupportsModernPolicyKeys || hello.Hostname == "" {
		return fmt.Errorf("unsupported client: %+v", first)
	}
	e := &encoder{connection: connection}
	if err := e.restart(""); err != nil {
		return err
	}
	if err := e.send(MsgServerHello{Version: "stand-in", SyncerType: "felix", SupportsNodeResourceUpdates: true, ServerConnID: 1}); err != nil {
		return err
	}
	// Ends one stream with the message that says how the next is packed, and waits until the client is ready for it.
	restart := func(compression CompressionAlgorithm) error {
		if err := e.gob.Encode(Envelope{MsgDecoderRestart{"restart", compression}}); err != nil {
			return err
		}
		if err := e.close(); err != nil {
			return err
		}
		answer, err := receive(pongTimeout)
		if err != nil {
			return err
		}
		if _, ok := answer.(MsgACK); !ok {
			return fmt.Errorf("%T in place of an acknowledgement", answer)
		}
		return e.restart(compression)
	}
	compression := s.compression
	if !slices.Contains(hello.SupportedCompressionAlgorithms, compression) {
		compression = ""
	}
	restarts := hello.SupportsDecoderRestart && !s.plain
	if restarts {
		if err := restart(compression); err != nil {
			return err
		}
	}
	position, snapshot := s.snapshot()
	for part := range slices.Chunk(snapshot, perMessage) {
		if err := e.send(MsgKVs{part}); err != nil {
			return err
		}
	}
	if restarts {
		if err := restart(compression); err != nil {
			return err
		}
	}
	if err := e.send(MsgSyncStatus{resyncInProgress}); err != nil {
		return err
	}
	if err := e.send(MsgSyncStatus{inSync}); err != nil {
		return err
	}
	go s.deltas(e, position)
	go s.pings(e)
	for {
		message, err := receive(pongTimeout)
		if err != nil {
			return err
		}
		pong, ok := message.(MsgPong)
		if !ok || pong.PingTimestamp.IsZero() || time.Since(pong.PongTimestamp).Abs() > time.Hour {
			return fmt.Errorf("unexpected after the handshake: %+v", message)
		}
	}
}

// The state of now, and up to where in the log it reaches.
func (s *server) snapshot() (int, []SerializedUpdate) {
	s.lock.Lock()
	defer s.lock.Unlock()
	latest := map[string]int{}
	for i, update := range s.log {
		latest[update.Key] = i
	}
	var state []SerializedUpdate
	for i, update := range s.log {
		if latest[update.Key] == i && update.Value != nil {
			update.UpdateType = kvNew
			state = append(state, update)
		}
	}
	return len(s.log), state
}

func (s *server) deltas(e *encoder, position int) {
	defer e.connection.Close()
	for {
		s.lock.Lock()
		for position == len(s.log) {
			s.changed.Wait()
		}
		part := slices.Clone(s.log[position:min(len(s.log), position+perMessage)])
		s.lock.Unlock()
		position += len(part)
		if e.send(MsgKVs{part}) != nil {
			return
		}
	}
}

func (s *server) pings(e *encoder) {
	defer e.connection.Close()
	for range time.Tick(pingInterval) {
		if e.send(MsgPing{time.Now()}) != nil {
			return
		}
	}
}
