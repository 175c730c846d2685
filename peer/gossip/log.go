package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
)

// refusedKey is how memberlist says that a message was made with another key.
const refusedKey = "no installed keys could decrypt the message"

// A logWriter takes memberlist's log lines, such as
// "[ERR] memberlist: failed to receive: …", to a slog.Logger: errors as
// warnings, since none of them ends anything, the rest for debugging.
type logWriter struct {
	log   *slog.Logger
	quiet atomic.Bool // while shutting down, when errors mean nothing
}

// Write takes one line.
func (w *logWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	level := slog.LevelDebug
	rest, isErr := bytes.CutPrefix(line, []byte("[ERR"))
	if isErr && !w.quiet.Load() && !bytes.Contains(line, []byte("Conflicting address")) { // see events.NotifyConflict
		level = slog.LevelWarn
	}
	if isErr {
		line = rest
	}
	if _, after, ok := bytes.Cut(line, []byte("memberlist: ")); ok {
		line = after
	}
	if level == slog.LevelWarn && bytes.Contains(line, []byte(refusedKey)) {
		w.log.Warn("somebody with another cluster secret knocks: if it is one of this fleet, compare its gossip.secretFile",
			"error", string(line))
		return len(p), nil
	}
	w.log.Log(context.Background(), level, "memberlist: "+string(line))
	return len(p), nil
}
