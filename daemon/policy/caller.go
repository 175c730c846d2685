package policy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"
)

// Doors that a Caller can have come by.
const (
	DoorMirror = "mirror"
	DoorProxy  = "proxy"
	DoorJob    = "job" // nobody asks: the node was told to bring an image
)

// A Caller is who asks, as far as known. Nothing of it but Authorization, which
// an upstream looks at, has been checked by anybody.
type Caller struct {
	Door string // one of the constants above
	Addr string // the client's IP address, or "unix"
	// Authorization is the header as it was sent, "" without one. It is a
	// secret: a Caller in a log or an error does not show it.
	Authorization string
	User          string // UserOf(Authorization), for the audit log
}

// String returns the caller without its secret.
func (c Caller) String() string {
	s := c.Door + " " + c.Addr
	if c.User != "" {
		s += fmt.Sprintf(" (%q)", c.User)
	}
	return s
}

// GoString is part of fmt.GoStringer: %#v does not show the secret either.
func (c Caller) GoString() string { return "policy.Caller(" + c.String() + ")" }

// LogValue is part of slog.LogValuer.
func (c Caller) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON is part of json.Marshaler, for logs in JSON.
func (c Caller) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// Bounds on what is read of an Authorization header, in bytes: a token of some
// registries has 8 KiB, and the name goes into a log.
const (
	maxToken = 32 << 10
	maxUser  = 128
)

// UserOf returns the user that an Authorization header names: the name of Basic,
// or the subject of a Bearer token that is a JWT (RFC 7519, section 4.1.2). It
// is what the client says; a header that says nothing, or that does not parse,
// is "".
func UserOf(authorization string) string {
	scheme, value := splitAuthorization(authorization)
	user := ""
	switch scheme {
	case "basic":
		data, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return ""
		}
		user, _, _ = strings.Cut(string(data), ":")
	case "bearer":
		user = claimsOf(value).Sub
	}
	if len(user) > maxUser || strings.ContainsFunc(user, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return ""
	}
	return user
}

// expiryOf returns when the token of an Authorization header expires by its own
// word (RFC 7519, section 4.1.4); zero if it does not say, as opaque tokens do
// not.
func expiryOf(authorization string) time.Time {
	scheme, value := splitAuthorization(authorization)
	if scheme != "bearer" {
		return time.Time{}
	}
	exp := claimsOf(value).Exp
	if exp == nil || math.IsNaN(*exp) || *exp < 0 || *exp > math.MaxInt32*8 {
		return time.Time{}
	}
	return time.Unix(int64(*exp), 0)
}

func splitAuthorization(authorization string) (scheme, value string) {
	if len(authorization) > maxToken {
		return "", ""
	}
	scheme, value, _ = strings.Cut(authorization, " ")
	return strings.ToLower(scheme), strings.TrimSpace(value)
}

// A claim set is what is read of a JWT. Its signature is the upstream's concern.
type claims struct {
	Sub string   `json:"sub"`
	Exp *float64 `json:"exp"`
}

func claimsOf(token string) (c claims) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil || json.Unmarshal(data, &c) != nil {
		return claims{}
	}
	return c
}
