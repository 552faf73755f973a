package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// claimsMember is the member of a request that holds a token's claims. Package idtoken
// parses its value, more strictly than checkMembers.
const claimsMember = "claims"

// matchMember is the member of a request that selects certificates. An empty value in
// it is refused: it would mean no filter, and so would select more certificates than
// the sender intended.
const matchMember = "match"

// decode parses one JSON value into v. It refuses unknown members, and members that
// occur twice or differ in case from the documented name. encoding/json accepts these,
// and a gateway in front may read them in another way.
func decode(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body) // limitSize bounds the body
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

// badJSON returns a bad-request error with a short text. The text may hold parts of
// the request and is truncated for the response and the log.
func badJSON(err error) error {
	return badRequest("the body is not the JSON that this call takes: %s", Printable(truncate(err.Error())))
}

// maxBodyDepth bounds the nesting of a request. The deepest has three levels.
const maxBodyDepth = 8

// checkMembers reads one value, which belongs to the member within. It refuses an
// object whose member names repeat or hold an upper-case letter.
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
	_, err = dec.Token() // the closing delimiter
	return err
}

func checkObject(dec *json.Decoder, depth int, within string) error {
	seen := make(map[string]bool, 8)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // in an object, the decoder returns only strings here
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
