// Package audit writes down who pulled what, and who was refused what and why:
// one line of JSON for each, to a file with rotation.
//
//	{"time":"2026-01-02T15:04:05.678Z","node":"n1","door":"mirror","client":"10.0.0.7","upstream":"ghcr.io","repository":"team/app","reference":"v1","digest":"sha256:…","kind":"manifest","verdict":"admitted","status":200,"source":"disk","bytes":1234,"tookSeconds":0.0012}
//
// # Why
//
// A pull never waits for this log: a full disk or one that hangs would stop all
// containers of a node for the sake of a line about them. Records go through a
// queue to one goroutine that writes; what does not fit is dropped and counted
// (shoal_audit_dropped_total), and the node's own log says when that begins and
// ends. Who needs every record watches that counter. A process that is killed
// loses what is in the queue, which is empty but for bursts.
//
// The file has one record a line, whatever a client put into its user name: JSON
// has no line break within a text. A line that a full disk cut is ended before
// the next. Texts are cut at a length, since clients choose some of them. There
// is no field for credentials.
//
// Files are rotated by size and at midnight UTC, or at the start of a process if
// the file is of an earlier day, so that KeepDays means something on a node that
// writes little. Only their owner can read them: they say who pulls what. A file
// that is there keeps its mode, since an operator may have given it to a group.
// The rotation is timberjack's, a lumberjack whose goroutines end with Close.
package audit
