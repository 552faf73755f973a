package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// claimsMember is the member of a request whose value is somebody else's JSON:
// package idtoken reads it, more strictly than this.
const claimsMember = "claims"

// matchMember is the member of a request that says which certificates are meant.
// An empty value in it is refused: read as none given, which it would be, it
// would mean more certificates than its sender had in mind.
const matchMember = "match"

// decode reads one JSON value into v. Unknown members are refused, and so are
// members that occur twice or are not spelled as documented, which encoding/json
// would let pass: what a gateway in front has read is what is done.
func decode(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body) // bounded by limitSize
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return badRequest("the body is empty; want JSON")
	}
	names := json.NewDecoder(bytes.NewReader(body))
	if err := checkMembers(names, 0, ""); err != nil {
		return badJSON(err)
	}
	if _, err := names.Token(); !errors.Is(err, io.EOF) {
		return badRequest("the body holds more than one JSON value")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badJSON(err)
	}
	return nil
}

// badJSON tells what is wrong in few words, of which some may be a stranger's:
// neither an answer nor the log repeats 64 KiB of them.
func badJSON(err error) error {
	return badRequest("the body is not the JSON that this call takes: %s", Printable(truncate(err.Error())))
}

// maxBodyDepth bounds the nesting of a request; the deepest has three levels.
const maxBodyDepth = 8

// checkMembers reads one value, that of the member within, and refuses an object
// whose member names repeat or hold an upper-case letter.
func checkMembers(dec *json.Decoder, depth int, within string) error {
	if depth > maxBodyDepth {
		return errors.New("nested too deep")
	}
	t, err := dec.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('['):
		for dec.More() {
			if err := checkMembers(dec, depth+1, ""); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		if err := checkObject(dec, depth, within); err != nil {
			return err
		}
	case "":
		if within == matchMember {
			return errors.New("a value of match is empty; leave it out to not match by it")
		}
		return nil
	default:
		return nil
	}
	_, err = dec.Token() // the end
	return err
}

func checkObject(dec *json.Decoder, depth int, within string) error {
	seen := make(map[string]bool, 8)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // the decoder gives nothing else here
		switch {
		case seen[name]:
			return errors.New("member " + name + " occurs twice")
		case strings.ToLower(name) != name:
			return errors.New("unknown member " + name)
		}
		seen[name] = true
		if depth == 0 && name == claimsMember {
			var others json.RawMessage
			err = dec.Decode(&others)
		} else {
			if depth == 0 {
				within = name
			}
			err = checkMembers(dec, depth+1, within)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
