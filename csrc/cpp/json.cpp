#include "cpp/json.h"

#include <stdexcept>
#include <utility>

namespace erd_cuda {
namespace {

// A header is a few levels deep; a hostile one must not use up the stack.
constexpr int kDeepest = 16;

class Parser {
 public:
  explicit Parser(const std::string& source) : source_(source) {}

  Json document() {
    Json value = this->value(0);
    skip_blanks();
    if (at_ != source_.size()) fail();
    return value;
  }

 private:
  Json value(int depth) {
    if (depth > kDeepest) fail();
    skip_blanks();
    Json json;
    const char next = peek();
    if (next == '{') {
      json.kind = Json::Kind::object;
      members('}', [&] {
        std::string key = text();
        expect(':');
        json.object[std::move(key)] = value(depth + 1);
      });
    } else if (next == '[') {
      json.kind = Json::Kind::list;
      members(']', [&] { json.list.push_back(value(depth + 1)); });
    } else if (next == '"') {
      json.kind = Json::Kind::text;
      json.text = text();
    } else if (source_.compare(at_, 4, "null") == 0) {
      at_ += 4;
    } else {
      json.kind = Json::Kind::number;
      json.number = number();
    }
    return json;
  }

  // What lies between the bracket here and the one that closes it, a comma between each.
  template <class Member>
  void members(char closing, Member member) {
    ++at_;
    skip_blanks();
    if (peek() == closing) {
      ++at_;
      return;
    }
    for (;;) {
      member();
      skip_blanks();
      if (peek() == closing) break;
      expect(',');
    }
    ++at_;
  }

  // Sizes and positions are all the numbers there are: no signs, points or exponents.
  int64_t number() {
    constexpr int64_t kLargest = int64_t{1} << 53;
    int64_t result = 0;
    if (peek() < '0' || peek() > '9') fail();
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      result = 10 * result + (source_[at_] - '0');
      if (result > kLargest) fail();
    }
    return result;
  }

  std::string text() {
    expect('"');
    std::string result;
    while (peek() != '"') {
      char c = source_[at_++];
      if (c == '\\') {
        c = peek();
        ++at_;
        // Names and words need no other escapes.
        if (c != '"' && c != '\\' && c != '/') fail();
      }
      result += c;
    }
    ++at_;
    return result;
  }

  void expect(char c) {
    skip_blanks();
    if (peek() != c) fail();
    ++at_;
  }

  void skip_blanks() {
    while (at_ < source_.size() && (source_[at_] == ' ' || source_[at_] == '\n' ||
                                    source_[at_] == '\r' || source_[at_] == '\t')) {
      ++at_;
    }
  }

  char peek() const {
    if (at_ >= source_.size()) fail();
    return source_[at_];
  }

  [[noreturn]] void fail() const {
    throw std::runtime_error("the header is damaged at byte " + std::to_string(at_));
  }

  const std::string& source_;
  size_t at_ = 0;
};

}  // namespace

Json Json::parse(const std::string& source) { return Parser(source).document(); }

const Json* Json::find(const std::string& key) const {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &found->second;
}

}  // namespace erd_cuda
