package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// A member is one of a JSON object's, and where it is in the text.
type member struct {
	key        string
	keyAt      int // of the opening quote
	start, end int // of the value
}

// members returns those of the object that src is. An empty text has none.
func members(src []byte) ([]member, error) {
	if len(bytes.TrimSpace(src)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(src))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is not a JSON object"), err)
	}
	var all []member
	for d.More() {
		from := int(d.InputOffset())
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string) // the decoder takes nothing else there
		if slices.ContainsFunc(all, func(m member) bool { return strings.EqualFold(m.key, key) }) {
			return nil, fmt.Errorf("%q is there twice", key)
		}
		m := member{key: key, keyAt: from + bytes.IndexByte(src[from:], '"')}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		m.end = int(d.InputOffset())
		m.start = m.end - len(raw)
		all = append(all, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after its end")
	}
	return all, nil
}

// setMember returns the object src with a member set to a value that is written
// as text, and all else as it was.
func setMember(src []byte, key, text string) ([]byte, error) {
	all, err := members(src)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(m member) bool { return m.key == key })
	switch {
	case i >= 0:
		return slices.Concat(src[:all[i].start], []byte(text), src[all[i].end:]), nil
	case len(bytes.TrimSpace(src)) == 0:
		return []byte("{\n  " + quoteJSON(key) + ": " + text + "\n}\n"), nil
	case len(all) == 0:
		open, end := bytes.IndexByte(src, '{'), bytes.LastIndexByte(src, '}')
		return slices.Concat(src[:open+1], []byte("\n  "+quoteJSON(key)+": "+text+"\n"), src[end:]), nil
	}
	last := all[len(all)-1]
	from := bytes.LastIndexAny(src[:last.keyAt], "{,") + 1
	space := src[from:last.keyAt] // what divides members
	if len(space) == 0 {
		space = []byte(" ")
	}
	return slices.Concat(src[:last.end], []byte(","), space, []byte(quoteJSON(key)+": "+text), src[last.end:]), nil
}

// prepend returns the text of a JSON list with one more element, the first.
func prepend(list []byte, element string) string {
	inside := list[1 : len(list)-1]
	rest := bytes.TrimLeft(inside, " \t\r\n")
	if len(rest) == 0 {
		return "[" + element + "]"
	}
	space := string(inside[:len(inside)-len(rest)])
	between := space
	if between == "" {
		between = " "
	}
	return "[" + space + element + "," + between + string(rest) + "]"
}

func quoteJSON(s string) string {
	b, _ := json.Marshal(s) // of a string
	return string(b)
}

// checkJSON compares what was edited with what it was to become.
func checkJSON(before, after []byte, key string, value any) error {
	var was, is map[string]any
	if len(bytes.TrimSpace(before)) > 0 {
		if err := json.Unmarshal(before, &was); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(after, &is); err != nil {
		return err
	}
	want, err := setIn(was, []string{key}, value)
	if err == nil && !reflect.DeepEqual(is, want) {
		err = errors.New("it is written in a form that this program does not edit")
	}
	return err
}
