package audit

import (
	"io"
	"log/slog"
)

// textLog is a logger whose lines a test can read once the Log is closed.
func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
